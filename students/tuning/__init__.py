"""Ways to specialise a student: importing the package enrols them all."""

import students.tuning.bottleneck  # noqa: F401
import students.tuning.full  # noqa: F401
import students.tuning.ia3  # noqa: F401
import students.tuning.lora  # noqa: F401
import students.tuning.prompt_tuning  # noqa: F401
