"""The pack's own sockets. Everything else travels on the host's."""

from comfy_api.latest import io

Face = io.Custom("FANTASYID_FACE")  # fantasyid_core.detection.faces.DetectedFace
Mesh = io.Custom("FANTASYID_MESH")  # fantasyid_core.reconstruction.face_mesh.FaceMesh
Performance = io.Custom("FANTASYID_PERFORMANCE")  # fantasyid_core.reconstruction.performance.Performance
Animation = io.Custom("FANTASYID_ANIMATION")  # fantasyid_core.reconstruction.animation.Animation
FaceClip = io.Custom("FANTASYID_FACE_CLIP")  # fantasyid_core.video.face_clip.FaceClip
Views = io.Custom("FANTASYID_VIEWS")  # fantasyid_core.views.collection.FaceViews
Identity = io.Custom("FANTASYID_IDENTITY")  # fantasyid_core.fusion.identity.Identity
Encoder = io.Custom("FANTASYID_ENCODER")  # the loaded identity encoder, under the host's memory management
