"""The mL1-ACE losses (Barfoot et al., arXiv 2506.03942) for any PyTorch loop; `calibrant.losses` outside this project.

Nothing here imports the rest of the project: the package is also shipped alone, as `calibrant-losses`.
"""

from .ace import ACEDiceCELoss, HardL1ACELoss, SoftL1ACELoss

__all__ = ["ACEDiceCELoss", "HardL1ACELoss", "SoftL1ACELoss"]
