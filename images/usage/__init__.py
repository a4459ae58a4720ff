"""What an organization used: sums, latencies, and the requests themselves.

Sums of closed hours come from the rollups, those of the open ones from the requests, so they are
exact whenever they are asked for. The rollups are also the index by which requests with a rare
tag, model or error are found among millions: they know the hours that have such requests.
"""
