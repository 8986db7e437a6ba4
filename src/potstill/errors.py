"""Every error this package raises on purpose.

    PotstillError
      ConfigError        ValueError     a config key or a command-line value is wrong
      DataError          ValueError     a record or a data file is malformed
        VocabMismatch                   teacher targets and student use different vocabularies
        AnswersLost                     answers that were kept cannot be read any more
      TeacherError       RuntimeError   the teacher did not answer
        TeacherRefused                  it never will: wrong key, URL or model name
      TrainError         RuntimeError   training cannot go on
      ExportError        RuntimeError   an artefact could not be made or is not equal to its source
      RunLocked          RuntimeError   another process works in the same run folder
      OfflineError       RuntimeError   --offline, and something wanted the network
      GateFailed         RuntimeError   a quality gate of the config was not met
      JobError           RuntimeError   the job store or an executor failed
        JobNotFound      LookupError
      MissingExtra       ImportError    an optional dependency is not installed

Each class also derives from the built-in it refines, so `except ValueError`
works for callers who have never heard of us. Messages are plain strings and
classes take no other arguments: an error must survive pickling, because a
worker process sends it back to the job store.
"""


class PotstillError(Exception):
    """Base of all of them. The CLI prints its message without a traceback."""

    exit_code = 1
    """What the command line ends with: 1 the work failed, 2 the question was wrong, 3 a gate."""


class ConfigError(PotstillError, ValueError):
    """A config key or a command-line value is wrong."""

    exit_code = 2


class DataError(PotstillError, ValueError):
    """A record or a data file is malformed."""

    exit_code = 2


class VocabMismatch(DataError):
    """Teacher targets and student use different vocabularies."""


class AnswersLost(DataError):
    """Answers that were kept cannot be read any more; the same command asks for them again."""

    exit_code = 1


class TeacherError(PotstillError, RuntimeError):
    """The teacher did not answer."""

    reason = "other"
    """Why, where it is about one request: a `models.failures.Failure`."""

    num_unread = 0
    """Attempts that may have been paid for, and brought nothing."""


class TeacherRefused(TeacherError):
    """The teacher will never answer as asked: wrong key, wrong URL, unknown model."""

    exit_code = 2


class TrainError(PotstillError, RuntimeError):
    """Training cannot go on."""


class ExportError(PotstillError, RuntimeError):
    """An artefact could not be made, or is not equal to its source."""


class RunLocked(PotstillError, RuntimeError):
    """Another process works in the same run folder."""


class OfflineError(PotstillError, RuntimeError):
    """`--offline` was given and something wanted to leave this machine."""


class GateFailed(PotstillError, RuntimeError):
    """A quality gate of the config was not met."""

    exit_code = 3


class JobError(PotstillError, RuntimeError):
    """The job store or an executor failed."""


class JobNotFound(JobError, LookupError):
    """No job of that name is in the store."""

    exit_code = 2


class MissingExtra(PotstillError, ImportError):
    """An optional dependency is not installed."""

    exit_code = 2
