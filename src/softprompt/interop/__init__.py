"""Import and export: PEFT, numpy, safetensors, P-tuning v2's code and vLLM."""

from softprompt.interop.convert import export_prompt, import_prompt, import_prompts
from softprompt.interop.vllm_client import VLLMPrompt

__all__ = ["VLLMPrompt", "export_prompt", "import_prompt", "import_prompts"]
