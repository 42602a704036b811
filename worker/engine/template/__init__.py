"""Starts engines without the time that SGLang's imports take: from a process that has done them already.

| process | started by | what it does |
|---|---|---|
| template | the agent, once (``client``) | imports SGLang, has no engine's state, forks a main process for each order |
| main | the template (``__main__``) | makes itself a session, forks two blanks, then runs ``sglang.launch_server`` |
| blank | main, before SGLang has any state | waits until SGLang starts a process, and becomes that one (``blanks``) |

Most of what a start on a CPU takes is imports, by three processes, beside ranks that serve: a minute on two cores that
four ranks share. An engine from a template imports nothing, and shares the modules' memory with its template. Each
process has the parent that it would have without: who looks for an engine's processes by group or by parent, or asks
the kernel to be killed with its parent, finds what it expects. All run the code that was there when the agent started.

For CPU ranks: that nothing of what is imported touches a GPU before the fork has not been shown.
"""
