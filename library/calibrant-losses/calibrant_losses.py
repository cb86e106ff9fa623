"""The mL1-ACE losses and the calibration metrics of Calibrant, without its service.

from calibrant_losses.losses import SoftL1ACELoss
from calibrant_losses.metrics import ace
"""
