"""The columns of the table, with their dtypes in pandas and their units; results/README.md shows them."""

from typing import NamedTuple

from runners.measures import (
    ACCURACY,
    FIRST_CORE_MACS,
    LATENCY,
    MACS,
    MEASURES,
    MEMORY,
    PARAMETERS,
    SPEED_UP,
    TRAINING_MEMORY,
    TRAINING_SPEED_UP,
    TRAINING_STEP,
)


class Column(NamedTuple):
    """What a column holds; the unit is empty for names, flags and counts."""

    dtype: str
    unit: str
    description: str


_MEAN = "mean over the classes that occur"

DENSE = {
    "miou": Column("Float64", "%", f"intersection over union of pixels, {_MEAN}"),
    "macc": Column("Float64", "%", f"share of the pixels of a class that are found, {_MEAN}"),
    "aacc": Column("Float64", "%", "share of all labelled pixels that are right"),
    **{
        f"{name}_ms": Column("Float64", "%", f"{name} of the mean over six scales and their mirror images")
        for name in ("miou", "macc", "aacc")
    },
    "ap": Column("Float64", "%", "average precision of boxes, mean over IoU 0.50 to 0.95, as COCO counts"),
    "ap50": Column("Float64", "%", "the same at IoU 0.50"),
    "ap75": Column("Float64", "%", "the same at IoU 0.75"),
    "ap_small": Column("Float64", "%", "ap of objects below 32 x 32 px"),
    "ap_medium": Column("Float64", "%", "ap of objects of 32 x 32 to 96 x 96 px"),
    "ap_large": Column("Float64", "%", "ap of larger objects"),
    "ap_mask": Column("Float64", "%", "average precision of masks, mean over IoU 0.50 to 0.95"),
    **{
        f"{name}_mask": Column("Float64", "%", f"{name} of masks")
        for name in ("ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    },
    **{
        f"{name}_{kind}": Column("Float64", "%", text.format(name))
        for name in ("miou", "ap", "ap_mask")
        for kind, text in (
            ("ema", "{} of the moving average of the weights"),
            ("best", "highest {} of the evaluations in training: selected on the held-out images"),
        )
    },
}
"""Accuracy of the dense tasks."""

COLUMNS = {
    "cell_key": Column("string", "", "folder of the cell: hash of its configuration"),
    "study": Column("string", "", "studies that the cell belongs to, joined by ;"),
    "attention": Column("string", "", "mechanism; empty for a model"),
    "model": Column("string", "", "model that is measured instead of a mechanism in a host, timm:NAME if it is timm's"),
    "task": Column("string", "", "classify, segment, detect or instance"),
    "head": Column("string", "", "what reads the maps of a dense task; empty for classify"),
    "head_settings": Column("string", "", "fields of the head that the cell sets, name=value joined by ;"),
    "attention_hash": Column("string", "", "hash of the code of the mechanism, joined by ; where the measures differ"),
    "impl": Column("string", "", "implementation of the mechanism that ran"),
    "layout": Column("string", "", "host network; empty for a model"),
    "depths": Column("string", "", "blocks of each stage, joined by -"),
    "settings": Column("string", "", "config fields of the mechanism that the cell sets, name=value joined by ;"),
    "topk": Column("Int64", "regions", "regions each region attends to, where one number was set for all stages"),
    "topk_schedule": Column("string", "regions", "top-k of each stage, joined by -; full is full attention"),
    "topk_effective": Column("string", "regions", "top-k of each stage after clipping, joined by -"),
    "regions": Column("string", "", "regions along each side of the map, joined by - where stages differ"),
    "region_size": Column("string", "tokens", "side of a region, joined by - where stages differ"),
    "window": Column("string", "tokens", "side of a window, joined by - where stages differ"),
    "height_px": Column("Int64", "px", "image height"),
    "width_px": Column("Int64", "px", "image width"),
    "resolution": Column("string", "px", "image height x width"),
    "pad_ratio": Column("Float64", "", "padded tokens per real token, over all blocks"),
    "seed": Column("Int64", "", "seed of weights and training data"),
    "precision": Column("string", "", "fp32, tf32, autocast (amp-) or weights in half precision"),
    "compile": Column("boolean", "", "torch.compile was used"),
    "sdpa": Column("string", "", "kernel asked of scaled_dot_product_attention; auto is torch's own choice"),
    "memory_format": Column("string", "", "of images and weights; contiguous leaves them as they are"),
    "deterministic": Column("boolean", "", "torch's deterministic algorithms were on"),
    "cudnn_benchmark": Column("boolean", "", "cuDNN timed its algorithms and chose"),
    "matmul_precision": Column("string", "", "torch's float32_matmul_precision: highest is fp32, high TF32"),
    "cudnn_tf32": Column("boolean", "", "convolutions of fp32 could use TF32"),
    "threads": Column("Int64", "", "CPU threads of torch"),
    "batch_size": Column("Int64", "images", "batch of timing and of training, over all processes"),
    "data": Column("string", "", "data set or probe"),
    "recipe": Column("string", "", "how the model was trained: the name of a recipe"),
    "training": Column("string", "", "fields of the recipe that the cell sets, name=value joined by ;"),
    "strict_data": Column("boolean", "", "an image that cannot be read ends the training"),
    "init_from": Column("string", "", "weights that the training started from: a cell or a file"),
    "init_hash": Column("string", "", "first 16 hex digits of their SHA-256"),
    "reset_classes": Column("boolean", "", "the classifier began anew"),
    "freeze": Column("boolean", "", "the classifier alone was trained"),
    "tune_lr": Column("string", "", "learning rates among which short trainings chose"),
    "tuned_lr": Column("Float64", "", "the one that they chose"),
    "steps": Column("Int64", "", "training steps"),
    "acc1": Column("Float64", ACCURACY.unit, "top-1 accuracy on the held-out images"),
    "acc5": Column("Float64", "%", "top-5 accuracy on the held-out images"),
    "n_eval": Column("Int64", "images", "held-out images"),
    "chance_percent": Column("Float64", "%", "acc1 of guessing"),
    "ceiling_percent": Column("Float64", "%", "acc1 of a model that sees the objects but cannot relate them"),
    **DENSE,
    "val_loss": Column("Float64", "nats", "cross entropy on the held-out images; not of detection"),
    "train_loss": Column("Float64", "nats", "mean cross entropy of the last training steps"),
    "train_seconds": Column("Float64", "s", "wall time of training"),
    "train_samples_per_sec": Column("Float64", "img/s", "training images per second, data loading included"),
    "data_wait_frac": Column("Float64", "", "share of train_seconds spent waiting for images"),
    "target_acc": Column("Int64", "%", "acc1 that training was to reach"),
    "steps_to_acc": Column("Int64", "", "steps after which it was first seen, looked for 20 times"),
    "seconds_to_acc": Column("Float64", "s", "wall time of these steps, without the looking"),
    "resumed": Column("Int64", "", "times that the training went on from a saved state"),
    "world_size": Column("Int64", "", "processes that trained together"),
    "acc1_ema": Column("Float64", ACCURACY.unit, "top-1 accuracy of the moving average of the weights"),
    "acc1_best": Column(
        "Float64", ACCURACY.unit, "highest acc1 of the evaluations in training: selected on the held-out images"
    ),
    "best_step": Column("Int64", "", "step after which it was first found"),
    "n_train": Column("Int64", "images", "training images; empty for drawn ones"),
    "num_classes": Column("Int64", "", "classes of the data"),
    "data_hash": Column(
        "string", "", "hash of the names and classes of all images of files, and of a class that reads them"
    ),
    "norm_mean": Column("string", "", "red/green/blue taken from the values of images in [0, 1]"),
    "norm_std": Column("string", "", "and what they are divided by then"),
    "teacher_hash": Column("string", "", "hash of the weights of the teacher, where one taught"),
    "broken_images": Column("Int64", "images", "images that could not be read and were left out"),
    "learning_rate_rule": Column("string", "", "learning rate of the training steps"),
    "weights": Column("string", "", "file of the trained weights, from the results folder on; see --save-weights"),
    "weights_best": Column("string", "", "file of the weights of acc1_best, from the results folder on"),
    "predictions": Column(
        "string", "", "picture of predictions beside truth, from the results folder on; see --save-predictions"
    ),
    "scores": Column("string", "", "picture of the confusion of classes, or of precision over recall; as predictions"),
    "curve": Column("string", "", "file with the loss of each step, from the results folder on"),
    "gmacs": Column(
        "Float64", MACS.unit, "matmul and convolution MACs of one image by the algorithm; timm's by counters"
    ),
    "backbone_gmacs": Column("Float64", MACS.unit, "share of the backbone of a dense task"),
    "head_gmacs": Column("Float64", MACS.unit, "share of its head, without what runs in training alone"),
    "proposals": Column("Int64", "", "boxes of an image that are in the head's MACs, whatever a model detects"),
    "masks": Column("Int64", "", "masks of an image that are in them"),
    "executed_gmacs": Column("Float64", MACS.unit, "the same for the implementation that ran"),
    "attention_gmacs": Column(
        "Float64", MACS.unit, "share of the token mixers in gmacs, projections included; not of timm's"
    ),
    "first_core_gmacs": Column(
        "Float64",
        FIRST_CORE_MACS.unit,
        "queries x keys, weights x values and routing in the first stage; not of timm's",
    ),
    "keys_per_query": Column(
        "Float64", "tokens", "keys that a query meets, mean over all tokens and blocks; not of timm's"
    ),
    "macts": Column("Float64", "1e6", "elements that convolutions and products write for one image, as timm counts"),
    "other_gops": Column("Float64", "1e9", "operations of norms, sampling and pooling for one image"),
    "gflops": Column("Float64", "GFLOP", "2 x gmacs"),
    "params_m": Column("Float64", PARAMETERS.unit, "parameters, frozen ones included"),
    "uncounted_ops": Column("string", "", "operators that no counter knows, name:calls joined by ;"),
    "peak_infer_mib": Column("Float64", MEMORY.unit, "peak of allocated memory in inference, weights included"),
    "peak_infer_reserved_mib": Column("Float64", "MiB", "peak of memory reserved by the CUDA allocator in inference"),
    "peak_rss_mib": Column("Float64", "MiB", "resident memory in inference over that after loading the model"),
    "peak_train_mib": Column("Float64", TRAINING_MEMORY.unit, "peak of allocated memory in the second training step"),
    "peak_train_reserved_mib": Column("Float64", "MiB", "peak of memory reserved by the CUDA allocator in training"),
    "peak_train_rss_mib": Column("Float64", "MiB", "resident memory in training over that after loading the model"),
    "infer_samples_per_sec": Column("Float64", "img/s", "batch_size / infer_latency_ms"),
    "infer_latency_ms": Column("Float64", LATENCY.unit, "one forward of a batch, median"),
    "infer_latency_ms_q25": Column("Float64", "ms", "its lower quartile"),
    "infer_latency_ms_q75": Column("Float64", "ms", "its upper quartile"),
    "infer_first_call_ms": Column("Float64", "ms", "first forward of the process, compilation included"),
    "train_step_ms": Column("Float64", TRAINING_STEP.unit, "one training step of a batch, median"),
    "train_forward_ms": Column("Float64", "ms", "forward and loss of a training step, median"),
    "train_backward_ms": Column("Float64", "ms", "backward of a training step, median"),
    "train_optimizer_ms": Column("Float64", "ms", "optimiser of a training step, median"),
    "train_first_step_ms": Column("Float64", "ms", "first training step of the process"),
    "baseline": Column(
        "string", "", "model that vs_vanilla compares with; else vanilla in the host, for models in stl"
    ),
    "vs_vanilla": Column(
        "Float64", SPEED_UP.unit, "baseline's latency / this latency, in turns in fresh processes; > 1 is faster"
    ),
    "vs_vanilla_low": Column("Float64", "", "lower end of its 95 % interval over processes"),
    "vs_vanilla_high": Column("Float64", "", "upper end of its 95 % interval over processes"),
    "vs_vanilla_reason": Column("string", "", "why vs_vanilla is empty"),
    "train_vs_vanilla": Column("Float64", TRAINING_SPEED_UP.unit, "the same ratio for a training step"),
    "timing_processes": Column("Int64", "", "fresh processes that shared the rounds of timing"),
    "allocator": Column("string", "", "variables of the C library's allocator while timing, or default"),
    "disturbed": Column("boolean", "", "something else was at work on the processors while timing"),
    "disturbance": Column("string", "", "what disturbed which process"),
    "measured_again": Column("boolean", "", "timed twice because the first time was disturbed; both are on disk"),
    "power_limit_w": Column("Float64", "W", "power that the driver allows the device"),
    "clock_mhz": Column("Float64", "MHz", "clock of the device's processors just after timing"),
    "max_clock_mhz": Column("Float64", "MHz", "highest clock of the device's processors"),
    "memory_clock_mhz": Column("Float64", "MHz", "clock of the device's memory just after timing"),
    "temperature_c": Column("Float64", "degrees Celsius", "of the device just after timing"),
    "mig": Column("boolean", "", "the device is divided into partitions (MIG)"),
    "other_processes": Column("Int64", "", "other processes that computed on the device just after timing"),
    "infer_latency_ms_p50": Column(
        "Float64", "ms", "one forward of one image, median of 6 forwards or more; measure latency"
    ),
    "infer_latency_ms_p90": Column("Float64", "ms", "its 90th percentile, of 100 forwards or more"),
    "infer_latency_ms_p99": Column("Float64", "ms", "its 99th percentile, of 1000 forwards or more"),
    "latency_samples": Column("Int64", "", "forwards behind the percentiles"),
    "max_batch": Column("Int64", "images", "largest batch whose forward fits into memory; measure max_batch"),
    "max_batch_reason": Column("string", "", "why the search went no further"),
    "max_infer_samples_per_sec": Column("Float64", "img/s", "of the fastest batch that the search met"),
    "fastest_batch": Column("Int64", "images", "that batch"),
    "energy_mj_per_image": Column("Float64", "mJ", "drawn in inference, idle power included; measure energy"),
    "train_energy_j_per_step": Column("Float64", "J", "drawn by a training step of a batch, idle power included"),
    "idle_power_w": Column("Float64", "W", "power before, with the model loaded and nothing running"),
    "energy_kind": Column("string", "", "what the energy is of: board (NVML) or package (RAPL)"),
    "energy_reason": Column("string", "", "why the energy is empty"),
    "kernel_launches": Column("Int64", "", "operators dispatched in one forward of one image; measure launches"),
    "kernels": Column("string", "", "these operators, name:calls joined by ;"),
    "gemm_gflops": Column("Float64", "GFLOP/s", "fastest large matrix product in the same process"),
    "copy_gb_s": Column("Float64", "GB/s", "fastest large copy in the same process, reads and writes"),
    "traffic_mib": Column("Float64", "MiB", "read and written by the operators of one forward, no cache assumed"),
    "status": Column("string", "", "ok if every wanted measure is, else see Status"),
    **{
        f"{measure}_status": Column("string", "", f"status of {measure} alone, empty if it was not asked for")
        for measure in sorted(MEASURES)
    },
    **{
        f"{measure}_protocol": Column("Int64", "", f"version of how {measure} is measured; numbers of two do not mix")
        for measure in sorted(MEASURES)
    },
    "attempts": Column("Int64", "", "attempts of the measure that took most"),
    "error_type": Column("string", "", "exception behind the status"),
    "error_message": Column("string", "", "messages of all measures that failed"),
    "log_path": Column("string", "", "log of the measure behind the status"),
    "device_id": Column("string", "", "device that the row was measured on, as in the names of its records"),
    "device": Column("string", "", "device as torch calls it"),
    "device_name": Column("string", "", "model of the processor or accelerator"),
    "cpu_model": Column("string", "", "model of the processor"),
    "cores_logical": Column("Int64", "", "processors of the machine"),
    "cores_usable": Column("Int64", "", "processors that the process could use"),
    "host": Column("string", "", "machine, joined by ; where the measures differ"),
    "platform": Column("string", "", "operating system"),
    "cuda": Column("string", "", "CUDA version of torch"),
    "cudnn": Column("string", "", "cuDNN version"),
    "driver": Column("string", "", "driver of the accelerator"),
    "versions": Column("string", "", "libraries, name=version joined by ;"),
    "git_sha": Column("string", "", "commit of this program, joined by ; where the measures differ"),
    "git_dirty": Column("boolean", "", "a measure ran with uncommitted changes"),
    "slurm_job": Column("string", "", "job of SLURM, joined by ; where the measures differ"),
    "node_shared": Column("boolean", "", "other jobs could run on the machine; empty outside SLURM"),
    "code_changed": Column("boolean", "", "the code was not the one that was submitted; empty outside SLURM"),
    "started_at": Column("string", "UTC", "start of the latest measure, ISO 8601"),
    "command": Column("string", "", "command that measures the row again"),
}

COMPUTED = ("precision", "compile", "sdpa", "memory_format", "deterministic", "cudnn_benchmark", "threads", "device_id")
"""How and where numbers were computed: rows that differ in any of these are not compared."""

RETIRED = ("sdpa_backend", "sdpa_backends")
"""Columns of earlier versions, the same in every row, that are left out."""

EARLIER_IMPLS = {"vanilla": {"dense": "plain"}, "sliding": {"gather": "tiles"}}
"""By mechanism, what earlier versions called an implementation, and its name of today; see `impl_today`."""


def impl_today(attention: str | None, impl: str | None) -> str | None:
    """Name the implementations of a row, joined by dashes where stages differ, as they are called today.

    `Attention.old_impls` says so of what a configuration asks for; this is what ran, and imports no mechanism.
    """
    names = EARLIER_IMPLS.get(attention or "", {"gather": "plain"})
    return impl and "-".join(names.get(part, part) for part in impl.split("-"))
