"""DICOM words are known here only."""
