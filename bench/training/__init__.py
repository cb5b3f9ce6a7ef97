"""Training: the loop, optimiser steps, schedules, checkpoints, devices and memory."""
