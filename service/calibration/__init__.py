"""The calibration maths (numpy only): reliability histograms and what follows from them."""
