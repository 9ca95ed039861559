"""`sciqa-dcf`: generated numeric questions on dust polarisation and magnetic fields, with exact answers, as lm-eval task folders."""
