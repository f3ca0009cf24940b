"""What makes the files that the pack ships: weights, pictures, workflows, the nodes' page."""
