"""The REST API, one file for each noun of it. Routes translate; `streams`, `predicting`, `labelling` and `edges` decide."""
