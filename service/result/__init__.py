"""What a result is made of: the files in its folder, and how each is written and read."""
