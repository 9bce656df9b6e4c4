"""Images with annotations: files and drawn scenes, how they are named, changed and put into batches."""
