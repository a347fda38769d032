"""What `visrt track` is told and says, apart from its run."""
