"""Training data: layouts of public data sets, cases, folds, and samples on the network's grid."""
