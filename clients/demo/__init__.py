"""The demo: a server, a camera in changing weather, and one stream per recipe side by side.

    scene ──frames──> weather ──> contest ──HTTP──> server
                                     └──> results ──> report, plot

`command` ties them together. It is imported only by `normstream demo`, for it needs the extra `bench`.
"""
