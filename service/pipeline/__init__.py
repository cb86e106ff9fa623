"""The data flow of one case: decode -> preprocess -> infer -> calibrate -> encode -> store."""
