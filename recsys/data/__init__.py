"""Raw logs to prepared data sets, and data sets to batches. Knows no model."""
