"""Reconstruction: face → mesh in FLAME's topology; mesh files and pictures of meshes."""
