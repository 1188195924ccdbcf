"""Jobs: taken in, queued, given executors, remembered."""
