"""The DICOM objects of a result: segmentation, structured report, parametric map, picture, PDF."""
