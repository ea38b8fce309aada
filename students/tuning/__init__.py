"""Ways to specialise a student: importing the package enrols them all."""

import students.tuning.bottleneck
import students.tuning.full
import students.tuning.ia3
import students.tuning.lora
import students.tuning.prompt_tuning
