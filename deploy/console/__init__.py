"""`haypile console`: what happens to prompts, as a web page."""
