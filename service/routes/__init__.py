"""The REST API, one file for each noun of it. Routes translate; `normstream.service.streams` decides."""
