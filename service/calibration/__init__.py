"""The calibration maths, in numpy only: reliability histograms and the figures that follow from them."""
