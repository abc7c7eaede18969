"""Which ways to run on several devices the multi-task Trainer supports."""

from transformers import Trainer


def require_supported_launcher(trainer: Trainer) -> None:
    """Refuse what cannot normalize the whole gradient of a task.

    Raises:
        ValueError: For DeepSpeed, FSDP of version 1, and several devices in one process.
    """
    if trainer.is_deepspeed_enabled:
        raise ValueError(
            "DeepSpeed must be off: it clips and scales gradients by itself, before they could "
            "be normalized per task. Use DDP or FSDP2."
        )
    if trainer.is_fsdp_enabled and trainer.accelerator.state.fsdp_plugin.fsdp_version == 1:
        raise ValueError(
            "FSDP must be of version 2: version 1 hides the parameters in flat shards, so a process cannot tell "
            'the length of the whole gradient. Set `fsdp_config={"version": 2}`, or use DDP.'
        )
    if trainer.args.n_gpu > 1:
        raise ValueError(
            f"There must be one process per device, got one for {trainer.args.n_gpu} devices. Start "
            "with `torchrun` or `accelerate launch`, or set CUDA_VISIBLE_DEVICES."
        )
