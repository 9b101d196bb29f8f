"""The REST API, one file for each noun of it. Routes translate; the use cases beside this folder decide."""
