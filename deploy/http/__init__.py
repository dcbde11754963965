"""`haypile http`: prompts and feedback over HTTP."""
