"""`haypile demo`: the whole loop on this machine, with a sample set of prompts and small thresholds."""
