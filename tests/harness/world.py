"""The inputs of the harness, made once: a small one of each kind that a verb of the command line reads."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pydicom
from nifti_files import some_voxels, write_nifti
from storm.life import small_dataset

from unscanned.evaluation.evaluate import evaluate
from unscanned.settings import Settings, resolve, to_toml
from unscanned.synthesis.array_job import emit_slurm, take_scans
from unscanned.synthesis.model import Model
from unscanned.synthesis.model_file import load_model
from unscanned.synthesis.shelf import shelve
from unscanned.synthesis.synthesize import list_inputs, synthesize
from unscanned.training.run import train
from unscanned.volumes.nifti import read_volume, write_volume

STUDY = "1.2.826.0.1.3680043.8.498"


def small_settings(**training: object) -> Settings:
    """One epoch of one step on patches of 8 voxels: a training that takes about a second."""
    steps = {"epochs": 1, "steps_per_epoch": 1, "batch": 2, "patch": 8, "validation_stride": 8, "threads": 1}
    return resolve(
        "demo",
        overrides={
            "prepare": {"shape": [16, 16, 16]},
            "split": {"train": 2, "validation": 1, "test": 1},
            "synthesis": {"stride": 8},
            "context": {"stride": 8},
            "training": {**steps, "min_head": 0.0, "device": "cpu", **training},
        },
    )


def make_world(root: Path) -> Path:
    """Write all inputs into a new folder.

    dataset, table.csv and ixi are the same four pairs; run, synthetic and evaluation were made from them; models is a
    shelf with the model of run; scan.nii.gz and dicom are one series twice, and derived is made from it; labels,
    cohort is a finished cohort of two scans, jobs the list of another one with @ in place of the folder of the call;
    series.nii.gz (4D), holes.nii.gz (NaN), settings.toml and split.json are what the other verbs read.
    """
    root.mkdir(parents=True)
    dataset = small_dataset(root / "dataset", subjects=4)
    (root / "ixi").mkdir()
    (root / "served").mkdir()
    table = ["subject,session,PD,T2"]
    for number in range(1, 5):
        scans = [f"dataset/sub-{number:03}/anat/sub-{number:03}_{contrast}w.nii.gz" for contrast in ("PD", "T2")]
        table.append(f"{number},,{scans[0]},{scans[1]}")
        for contrast, scan in zip(("PD", "T2"), scans, strict=True):
            shutil.copy(root / scan, root / "ixi" / f"IXI{number:03}-Guys-{number:04}-{contrast}.nii.gz")
    (root / "table.csv").write_text("\n".join(table) + "\n")
    for contrast in ("PD", "T2"):
        with tarfile.open(root / "served" / f"IXI-{contrast}.tar", "w") as archive:
            for scan in sorted((root / "ixi").glob(f"*-{contrast}.nii.gz")):
                archive.add(scan, scan.name)
    settings = small_settings()
    (root / "settings.toml").write_text(to_toml(settings))
    train(dataset, root / "run", settings)
    shutil.copy(root / "run" / "split.json", root / "split.json")
    shutil.copytree(root / "run" / "model", root / "models" / "pd-t2")
    shelve(root / "models", "pd-t2")
    model = load_model(root / "run" / "model")
    scans, _ = list_inputs([dataset], source="PD", target="T2")
    synthesize(model, scans[:2], root / "synthetic", force=True)
    evaluate(dataset, {"arm": root / "synthetic"}, root / "evaluation")
    _write_cohorts(root, model, scans[:2])
    _write_series(dataset / "sub-001" / "anat" / "sub-001_PDw.nii.gz", root)
    synthesize(model, [(root / "scan.nii.gz", None)], root / "derived", force=True)
    labels = np.zeros((14, 14, 14), np.float32)
    labels[2:12, 2:12, 2:12], labels[5:9, 5:9, 5:9] = 3, 2
    write_volume(root / "labels" / "a_dseg.nii.gz", labels, np.diag([8.0, 8, 8, 1]))
    write_nifti(root / "series.nii.gz", some_voxels((9, 8, 7, 3)))
    holes = some_voxels((9, 8, 7), "<f4")
    holes[3, 3, 3] = np.nan
    write_nifti(root / "holes.nii.gz", holes)
    return root


def _write_cohorts(root: Path, model: Model, scans: list[tuple[Path, str | None]]) -> None:
    """Write a cohort that is finished, and the list of one whose volumes go below @/out."""
    emit_slurm(model, scans, root / "cohort", root / "list", force=True)
    take_scans(root / "list")
    shutil.rmtree(root / "list")
    emit_slurm(model, scans, root / "waiting", root / "jobs", force=True)
    shutil.rmtree(root / "waiting")
    for name in ("cohort.json", "scans.jsonl"):
        text = (root / "jobs" / name).read_text()
        text = text.replace(str(root / "waiting"), "@/out/cohort").replace(str(root), "@/in")
        (root / "jobs" / name).write_text(text)


def _write_series(scan: Path, root: Path) -> None:
    """Write a scan as axial MR images into dicom, and the same grid and voxels as scan.nii.gz."""
    volume = read_volume(scan)
    array = np.rint(volume.array / volume.array.max() * 1000).astype(np.uint16)
    affine = np.diag([-8.0, -8.0, 8.0, 1.0])
    (root / "dicom").mkdir()
    for k in range(array.shape[2]):
        image = pydicom.Dataset()
        image.file_meta = pydicom.dataset.FileMetaDataset()
        image.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        image.SOPClassUID, image.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.4", f"{STUDY}.1.{k + 1}"
        image.StudyInstanceUID, image.FrameOfReferenceUID, image.SeriesInstanceUID = STUDY, f"{STUDY}.2", f"{STUDY}.3"
        image.PatientName, image.PatientID, image.Modality = "A^B", "P-17", "MR"
        image.SeriesNumber, image.InstanceNumber, image.EchoTime, image.RepetitionTime = 2, k + 1, 13.0, 2500.0
        image.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
        image.ImageOrientationPatient, image.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 8 * k]
        image.PixelSpacing, image.SliceThickness = [8, 8], 8
        image.Columns, image.Rows = array.shape[:2]
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 0
        image.PixelData = np.ascontiguousarray(array[:, :, k].T).astype("<u2").tobytes()
        image.save_as(root / "dicom" / f"{k:03}", enforce_file_format=True)
    write_volume(root / "scan.nii.gz", array.astype(np.float32), affine)
