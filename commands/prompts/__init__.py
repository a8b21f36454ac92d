"""`generate`: its options and how a result is written; and a file of prompts, worked through one by one."""
