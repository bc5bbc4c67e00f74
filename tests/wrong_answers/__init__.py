"""Wrong answers to the exercises, a module for each chapter; `test_exercises` tries them."""
