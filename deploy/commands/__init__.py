"""The commands, one file a group. They import what they need inside, so that `haypile --help` stays fast."""
