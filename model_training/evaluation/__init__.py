"""What a trained network scores on labelled cases, and the files that show it."""
