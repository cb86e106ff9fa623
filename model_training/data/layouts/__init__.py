"""Published layouts of public data sets, one module each: folder -> cases by split."""
