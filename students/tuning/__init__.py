"""Tuning methods for specialising a student; importing the package registers them all."""

import students.tuning.bottleneck  # noqa: F401
import students.tuning.full  # noqa: F401
import students.tuning.ia3  # noqa: F401
import students.tuning.lora  # noqa: F401
import students.tuning.prompt_tuning  # noqa: F401
