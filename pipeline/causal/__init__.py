"""The Corr2Cause engine: graphs, d-separation, equivalence, text, solver, traces and splits, exact and in numpy."""
