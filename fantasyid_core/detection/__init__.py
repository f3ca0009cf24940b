"""Detection: photo → faces, each with landmarks, head pose and its FFHQ-aligned crop."""
