"""One elastic rank inside SGLang: the plugin, and the agent's side of it (``client``, ``launch``)."""
