"""A DICOM series: instances are checked, sorted into a stack and read as one volume."""
