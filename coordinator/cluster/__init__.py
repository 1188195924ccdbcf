"""The group: which nodes form it, when it forms anew, and the executors that come of it."""
