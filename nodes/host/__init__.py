"""What adapts the core to ComfyUI: its models, memory management, samplers and folders."""
