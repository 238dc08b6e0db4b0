"""A load generator for OpenAI-compatible servers.

    prompts   seeded texts of an exact length        client   one streamed request, timed as it arrives
    sse       server-sent events from raw bytes      load     which requests are sent when
    metrics   timings -> latencies and rates         report   tables for people, JSON for machines
    peers     starts and stops the servers that `compare.py` puts side by side

Nothing here imports Octavo: it measures any server in the same way.
"""
