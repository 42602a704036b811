"""The clients' front door: OpenAI's and SGLang's dialects in front of whichever ranks are active.

A request outlives its rank: ``generation`` decides what happens next (pure), ``carrier`` carries it out, ``router``
chooses the rank (pure), ``routes`` says which there are, ``service`` sees to it that each request ends exactly once.
A token goes from its rank's connection (``connections``) to its client's (``events``) in one call.

    eep-gateway --config eep.toml
    eep-gateway --model tools/models/sprout --rank 0=http://127.0.0.1:30000 --rank 1=http://127.0.0.1:30001
"""
