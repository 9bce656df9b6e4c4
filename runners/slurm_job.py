"""The name by which jobs that earlier versions submitted find their task: a pickle names its class's module.

Jobs wait in a queue for days, and run the code that is there when they begin.
"""

from runners.jobs.task import ArrayTask as ArrayTask
