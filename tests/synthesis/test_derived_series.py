"""DICOM: a series of slices becomes NIfTI by dcm2niix, is synthesized, and comes back on the same slices."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from unscanned.cli import main
from unscanned.errors import DatasetError
from unscanned.files import read_json, write_json
from unscanned.synthesis.derived_series import write_dicom
from unscanned.synthesis.model_file import load_model
from unscanned.synthesis.synthesize import synthesize
from unscanned.volumes.nifti import read_volume, write_volume

dcm2niix = pytest.importorskip("dcm2niix")
pydicom = pytest.importorskip("pydicom")

STUDY, FRAME = "1.2.826.0.1.3680043.8.498.1", "1.2.826.0.1.3680043.8.498.2"


def rotation(degrees, axis):
    angle = np.deg2rad(degrees)
    i, j = [n for n in range(3) if n != axis]
    matrix = np.eye(3)
    matrix[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
    return matrix


GRIDS = {
    "axial": (np.eye(3), (0.9, 1.1, 3.0)),
    "sagittal": (np.array([[0, 0, 1.0], [1, 0, 0], [0, -1, 0]]), (1.0, 1.0, 1.2)),
    "coronal, oblique": (rotation(20, 0) @ np.array([[1, 0, 0], [0, 0, 1.0], [0, -1, 0]]), (1.0, 1.2, 2.0)),
    "doubly oblique": (rotation(15, 2) @ rotation(-10, 1), (0.8, 0.8, 2.5)),
}


def write_series(folder, array, axes, spacing, *, uid="1", echo_time=13.0, number=2, **elements):
    """Write (column, row, slice) voxels as classic MR images; `axes` are the directions of the three, LPS+."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(array.shape[2]):
        image = pydicom.Dataset()
        image.file_meta = pydicom.dataset.FileMetaDataset()
        image.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        image.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
        image.SOPInstanceUID = f"{STUDY}.{uid}.{echo_time:.0f}.{k + 1}"
        image.StudyInstanceUID, image.FrameOfReferenceUID = STUDY, FRAME
        image.SeriesInstanceUID = f"{STUDY}.{uid}"
        image.SpecificCharacterSet = "ISO_IR 192"
        image.PatientName, image.PatientID = "Müller^磁共振", "P-17"
        image.PatientBirthDate, image.PatientSex = "19700101", "F"
        image.StudyDate, image.StudyTime, image.StudyID = "20260102", "030405", "7"
        image.AccessionNumber, image.ReferringPhysicianName = "A1", ""
        image.Modality, image.SeriesNumber, image.InstanceNumber = "MR", number, k + 1
        image.Manufacturer, image.ManufacturerModelName = "SIEMENS", "Skyra"
        image.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
        image.ScanningSequence, image.SequenceVariant, image.MRAcquisitionType = "SE", "SK", "2D"
        image.EchoTime, image.RepetitionTime, image.EchoTrainLength = echo_time, 2500.0, 8
        image.PatientPosition, image.BodyPartExamined = "HFS", "HEAD"
        image.ImageOrientationPatient = [round(float(v), 8) for v in (*axes[:, 0], *axes[:, 1])]
        position = np.array([-100.0, -80.0, 30.0]) + axes[:, 2] * spacing[2] * k
        image.ImagePositionPatient = [round(float(v), 6) for v in position]
        image.PixelSpacing, image.SliceThickness = [spacing[1], spacing[0]], spacing[2]
        image.Columns, image.Rows = array.shape[:2]
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 0
        image.PixelData = np.ascontiguousarray(array[:, :, k].T).astype("<u2").tobytes()
        for name, value in elements.items():
            setattr(image, name, value)
        # Names and numbers of files say nothing of the order of slices.
        image.save_as(folder / f"{(k * 7) % 101:03d}-{uid}-{echo_time:.0f}", enforce_file_format=True)
    return folder


def converted(folder, out):
    """Return the NIfTI that dcm2niix makes of a folder of one series."""
    if shutil.which("dcm2niix") is None:
        pytest.importorskip("dcm2niix")
    import dcm2niix

    out.mkdir()
    subprocess.run(
        [dcm2niix.bin, "-z", "y", "-b", "n", "-f", "scan", "-o", out, folder], check=True, capture_output=True
    )
    return next(out.glob("*.nii.gz"))


@pytest.fixture(scope="module")
def head(tiny_dataset):
    """A simulated head, 16-bit, as (column, row, slice)."""
    array = read_volume(tiny_dataset / "sub-001" / "anat" / "sub-001_PDw.nii.gz").array
    return np.ascontiguousarray(np.rint(array / array.max() * 1000).astype(np.uint16)[:, ::-1, :])


@pytest.fixture(scope="module")
def made(head, tiny_run, tmp_path_factory):
    """An axial series, and the synthetic volume that was made from it; tests must not change them."""
    folder = tmp_path_factory.mktemp("dicom")
    axes, spacing = GRIDS["axial"]
    series = write_series(folder / "source", head, axes, spacing)
    scan = converted(series, folder / "nifti")
    result = synthesize(load_model(tiny_run), [(scan, None)], folder / "synthetic", force=True)
    assert not result.failures
    return series, result.written[0]


def slices(folder):
    images = [pydicom.dcmread(path) for path in folder.glob("*.dcm")]
    return sorted(images, key=lambda image: int(image.InstanceNumber))


@pytest.mark.parametrize("grid", GRIDS)
def test_a_synthetic_series_lies_on_the_source_s_slices_voxel_for_voxel(grid, head, tiny_run, tmp_path):
    axes, spacing = GRIDS[grid]
    series = write_series(tmp_path / "source", head, axes, spacing)
    scan = converted(series, tmp_path / "nifti")
    volume = synthesize(load_model(tiny_run), [(scan, None)], tmp_path / "synthetic", force=True).written[0]
    assert main(["dicom", str(volume), str(series), "-o", str(tmp_path / "derived")]) == 0
    # dcm2niix, which knows nothing of this project, takes the derived series to the same grid and voxels.
    expected, back = read_volume(volume), read_volume(converted(tmp_path / "derived", tmp_path / "back"))
    np.testing.assert_allclose(back.affine, expected.affine, atol=1e-4)
    step = float(np.ptp(expected.array)) / 65535
    np.testing.assert_allclose(back.array, expected.array, atol=step)
    # And every file has the position of the slice that it names as its source.
    places = {image.SOPInstanceUID: image.ImagePositionPatient for image in map(pydicom.dcmread, series.iterdir())}
    for image in slices(tmp_path / "derived"):
        assert places[image.SourceImageSequence[0].ReferencedSOPInstanceUID] == image.ImagePositionPatient


def test_every_file_is_marked_and_shares_only_patient_study_and_space(made, tmp_path):
    series, volume = made
    assert main(["dicom", str(volume), str(series), "-o", str(tmp_path / "derived")]) == 0
    source = pydicom.dcmread(next(series.iterdir()))
    facts = read_json(volume.with_name(volume.name.replace(".nii.gz", ".json")))
    images = slices(tmp_path / "derived")
    assert len(images) == 32
    for image in images:
        assert image[0x0008, 0x001C].value == "YES"
        assert list(image.ImageType) == ["DERIVED", "SECONDARY", "OTHER"]
        assert image.SeriesDescription == "SYNTHETIC T2 - NOT FOR DIAGNOSIS"
        assert image.ContentQualification == "RESEARCH"
        assert facts["Model"]["Sha256"] in image.DerivationDescription
        purposes = [item.PurposeOfReferenceCodeSequence[0].CodeValue for item in image.ContributingEquipmentSequence]
        assert purposes == ["109101", "109102"]
        assert image.DerivationAlgorithmSequence[0].AlgorithmFamilyCodeSequence[0].CodeValue == "123110"
        for name in ("PatientName", "PatientID", "StudyInstanceUID", "StudyDate", "FrameOfReferenceUID"):
            assert image[name].value == source[name].value
        assert image.SeriesInstanceUID != source.SeriesInstanceUID
        assert image.get("EchoTime") is None
        assert image.Manufacturer == "unscanned"
    assert len({image.SOPInstanceUID for image in images}) == len(images)


def test_the_same_volume_gives_the_same_files(made, tmp_path):
    series, volume = made
    for name in ("one", "two"):
        assert main(["dicom", str(volume), str(series), "-o", str(tmp_path / name)]) == 0
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_the_derived_series_is_valid(made, tmp_path):
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (Debian: dicom3tools)")
    series, volume = made
    assert main(["dicom", str(volume), str(series), "-o", str(tmp_path / "derived")]) == 0
    said = subprocess.run(["dciodvfy", tmp_path / "derived" / "IM0001.dcm"], capture_output=True, text=True).stderr
    assert "MRImage" in said
    # Its releases before 2023 do not know Synthetic Data (0008,001C).
    errors = [line for line in said.splitlines() if "Error" in line and "(0x0008,0x001c)" not in line]
    assert errors == []


@pytest.mark.parametrize(
    ("source", "derived"),
    [(2**31 - 1, 2**31 - 2), (2**31 - 2, 2**31 - 1), (21474836, 2147483601), (21474837, 21474838), (-1, -99), (0, 1)],
)
def test_the_series_number_is_one_that_dicom_can_say(made, head, tmp_path, source, derived):
    axes, spacing = GRIDS["axial"]
    series = write_series(tmp_path / "source", head, axes, spacing, number=source)
    assert main(["dicom", str(made[1]), str(series), "-o", str(tmp_path / "derived")]) == 0
    assert {image.SeriesNumber for image in slices(tmp_path / "derived")} == {derived}


def test_times_are_in_the_source_s_offset(made, head, tmp_path):
    axes, spacing = GRIDS["axial"]
    series = write_series(tmp_path / "source", head, axes, spacing, TimezoneOffsetFromUTC="+0530")
    assert main(["dicom", str(made[1]), str(series), "-o", str(tmp_path / "derived")]) == 0
    image = slices(tmp_path / "derived")[0]
    assert image.TimezoneOffsetFromUTC == "+0530"
    assert image.StudyTime == "030405"
    utc = str(image.ContributingEquipmentSequence[1].ContributionDateTime)
    minutes = (int(image.ContentTime[:2]) * 60 + int(image.ContentTime[2:4])) - (int(utc[8:10]) * 60 + int(utc[10:12]))
    assert minutes % (24 * 60) == 330
    assert utc.endswith("+0000")


@pytest.fixture(scope="module")
def other_head(tiny_dataset):
    """Another subject's, on the grid of `head`."""
    array = read_volume(tiny_dataset / "sub-002" / "anat" / "sub-002_PDw.nii.gz").array
    return np.ascontiguousarray(np.rint(array / array.max() * 1000).astype(np.uint16)[:, ::-1, :])


def noisy(array, share, seed=0):
    """The same head scanned again: noise is this share of the brightest voxel."""
    noise = np.random.default_rng(seed).normal(0, share * array.max(), array.shape)
    return np.clip(np.rint(array + noise), 0, 65535).astype(np.uint16)


def test_of_two_patients_on_one_grid_the_scanned_one_gets_the_series(made, other_head, tmp_path, capsys):
    axes, spacing = GRIDS["axial"]
    other = {"uid": "9", "PatientName": "Other^Patient", "PatientID": "P-99"}
    both = shutil.copytree(made[0], tmp_path / "both")
    write_series(both / "other", other_head, axes, spacing, **other)
    assert main(["dicom", str(made[1]), str(both), "-o", str(tmp_path / "derived")]) == 0
    assert {image.PatientID for image in slices(tmp_path / "derived")} == {"P-17"}
    wrong = write_series(tmp_path / "wrong", other_head, axes, spacing, **other)
    assert main(["dicom", str(made[1]), str(wrong), "-o", str(tmp_path / "mistaken")]) == 3
    message = capsys.readouterr().err
    assert "is not the scan that the volume was made from" in message
    assert "unexplained" in message
    assert str(wrong) in message
    assert not (tmp_path / "mistaken").exists()


def test_the_same_head_scanned_again_is_another_scan(made, head, tmp_path, capsys):
    axes, spacing = GRIDS["axial"]
    again = write_series(tmp_path / "again", noisy(head, 0.01), axes, spacing, uid="9")
    assert main(["dicom", str(made[1]), str(again), "-o", str(tmp_path / "derived")]) == 3
    assert "is not the scan that the volume was made from" in capsys.readouterr().err


def test_force_takes_the_series_unseen_and_every_file_says_so(made, head, tmp_path):
    axes, spacing = GRIDS["axial"]
    changed = write_series(tmp_path / "changed", noisy(head, 0.01), axes, spacing, uid="9")
    assert main(["dicom", str(made[1]), str(changed), "-o", str(tmp_path / "derived"), "--force"]) == 0
    for image in slices(tmp_path / "derived"):
        assert "not compared with the source scan" in image.DerivationDescription
    assert main(["dicom", str(made[1]), str(made[0]), "-o", str(tmp_path / "compared")]) == 0
    assert "not compared" not in slices(tmp_path / "compared")[0].DerivationDescription


def test_a_forced_series_and_a_compared_one_have_other_uids(made, tmp_path):
    for name, options in (("compared", []), ("forced", ["--force"])):
        assert main(["dicom", str(made[1]), str(made[0]), "-o", str(tmp_path / name), *options]) == 0
    compared, forced = ({image.SOPInstanceUID for image in slices(tmp_path / name)} for name in ("compared", "forced"))
    assert not compared & forced


def test_a_scan_that_was_not_verified_is_not_in_the_series_either(made, tmp_path):
    series, volume = made
    for path in volume.parent.glob("*synthetic*"):
        shutil.copy(path, tmp_path)
    own = tmp_path / volume.name
    sidecar = Path(str(own).replace(".nii.gz", ".json"))
    scan = str(next((series.parent / "nifti").glob("*.nii.gz")))
    said = {}
    for verified in (True, False, None):
        write_json(sidecar, read_json(sidecar) | {"InputContrastVerified": verified})
        out = tmp_path / f"{verified}"
        assert main(["dicom", str(own), str(series), "-o", str(out), "--scan", scan]) == 0
        said[verified] = "was not verified to be PD" in slices(out)[0].DerivationDescription
    assert said == {True: False, False: True, None: False}


def test_a_scan_that_was_forced_though_unlike_the_training_scans_is_called_so_in_the_series(made, tmp_path):
    series, volume = made
    for path in volume.parent.glob("*synthetic*"):
        shutil.copy(path, tmp_path)
    own = tmp_path / volume.name
    sidecar = Path(str(own).replace(".nii.gz", ".json"))
    scan = str(next((series.parent / "nifti").glob("*.nii.gz")))
    said = {}
    for verdict in ("familiar", "warned", "forced"):
        write_json(sidecar, read_json(sidecar) | {"InputFamiliarity": {"Verdict": verdict}})
        out = tmp_path / verdict
        assert main(["dicom", str(own), str(series), "-o", str(out), "--scan", scan]) == 0
        said[verdict] = "unlike those that the model was trained on" in slices(out)[0].DerivationDescription
    assert said == {"familiar": False, "warned": False, "forced": True}


@pytest.mark.parametrize("change", [{"Made": "once"}, {"Made": "2026-01-02"}, {"GeneratedBy": [{"Version": 1}]}])
def test_a_damaged_sidecar_is_refused(change, made, tmp_path, capsys):
    series, volume = made
    for path in volume.parent.glob("*synthetic*"):
        shutil.copy(path, tmp_path)
    sidecar = Path(str(tmp_path / volume.name).replace(".nii.gz", ".json"))
    write_json(sidecar, read_json(sidecar) | change)
    assert main(["dicom", str(tmp_path / volume.name), str(series), "-o", str(tmp_path / "derived")]) == 3
    assert "sidecar" in capsys.readouterr().err


def test_of_two_echoes_on_one_grid_the_scanned_one_is_found(made, head, other_head, tmp_path, capsys):
    axes, spacing = GRIDS["axial"]
    series = shutil.copytree(made[0], tmp_path / "source")
    write_series(series, (head // 2 + other_head // 2), axes, spacing, echo_time=90.0)
    call = ["dicom", str(made[1]), str(series), "-o"]
    assert main([*call, str(tmp_path / "found")]) == 0
    # Unseen, one must be named.
    assert main([*call, str(tmp_path / "derived"), "--force"]) == 3
    message = capsys.readouterr().err
    assert "several series lie on the grid of the volume" in message
    assert "echo time 13 ms" in message
    assert "echo time 90 ms" in message
    assert "--echo-time-ms" in message
    assert not (tmp_path / "derived").exists()
    assert main([*call, str(tmp_path / "derived"), "--force", "--echo-time-ms", "13"]) == 0
    for name in ("found", "derived"):
        image = slices(tmp_path / name)[0]
        assert image.SourceImageSequence[0].ReferencedSOPInstanceUID.startswith(f"{STUDY}.1.13.")


def test_of_two_copies_of_the_series_one_must_be_named(made, head, tmp_path, capsys):
    axes, spacing = GRIDS["axial"]
    series = shutil.copytree(made[0], tmp_path / "source")
    write_series(series / "copy", head, axes, spacing, uid="9")
    call = ["dicom", str(made[1]), str(series), "-o", str(tmp_path / "derived")]
    assert main(call) == 3
    assert "several series hold the voxels of the source scan" in capsys.readouterr().err
    assert main([*call, "--series", f"{STUDY}.9"]) == 0
    assert slices(tmp_path / "derived")[0].SourceImageSequence[0].ReferencedSOPInstanceUID.startswith(f"{STUDY}.9.")


def test_a_scan_that_was_moved_is_asked_for(made, tmp_path, capsys):
    series, volume = made
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for path in volume.parent.glob("*synthetic*"):
        shutil.copy(path, folder)
    call = ["dicom", str(folder / volume.name), str(series), "-o", str(tmp_path / "derived")]
    assert main(call) == 3
    assert "Name it with --scan" in capsys.readouterr().err
    scan = next((series.parent / "nifti").glob("*.nii.gz"))
    assert main([*call, "--scan", str(volume)]) == 3
    assert "another scan than the one" in capsys.readouterr().err
    assert main([*call, "--scan", str(scan)]) == 0


def test_rescaled_voxels_are_recognized(head, tiny_run, tmp_path):
    axes, spacing = GRIDS["axial"]
    series = write_series(
        tmp_path / "source", head, axes, spacing, RescaleSlope="2.5", RescaleIntercept="-40", RescaleType="US"
    )
    scan = converted(series, tmp_path / "nifti")
    assert read_volume(scan).array.min() < -30  # dcm2niix applied them
    volume = synthesize(load_model(tiny_run), [(scan, None)], tmp_path / "synthetic", force=True).written[0]
    assert main(["dicom", str(volume), str(series), "-o", str(tmp_path / "derived")]) == 0


def test_compressed_voxels_are_read_or_what_reads_them_is_named(made, tmp_path, capsys):
    series, volume = made
    packed = shutil.copytree(series, tmp_path / "packed")
    for path in packed.iterdir():
        image = pydicom.dcmread(path)
        image.compress(pydicom.uid.RLELossless)
        image.save_as(path)
    assert main(["dicom", str(volume), str(packed), "-o", str(tmp_path / "derived")]) == 0
    broken = next(packed.iterdir())
    image = pydicom.dcmread(broken)
    image.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLosslessSV1
    image.save_as(broken)
    assert main(["dicom", str(volume), str(packed), "-o", str(tmp_path / "refused")]) == 3
    message = capsys.readouterr().err
    assert "the voxels of the series cannot be read" in message
    assert str(broken) in message
    assert "python-gdcm" in message


def test_slices_that_name_two_patients_are_no_series(made, tmp_path, capsys):
    mixed = shutil.copytree(made[0], tmp_path / "mixed")
    path = sorted(mixed.iterdir())[5]
    image = pydicom.dcmread(path)
    image.PatientID = "P-18"
    image.save_as(path)
    assert main(["dicom", str(made[1]), str(mixed), "-o", str(tmp_path / "derived")]) == 3
    assert "no even stack of parallel slices of one patient and study" in capsys.readouterr().err


def test_another_series_beside_it_is_told_apart_by_its_grid(made, head, tmp_path):
    axes, spacing = GRIDS["sagittal"]
    series = shutil.copytree(made[0], tmp_path / "source")
    write_series(series / "other", head, axes, spacing, uid="9", number=9)
    (series / "notes.txt").write_text("not DICOM")
    assert main(["dicom", str(made[1]), str(series), "-o", str(tmp_path / "derived")]) == 0
    assert slices(tmp_path / "derived")[0].SeriesNumber == 201


@pytest.mark.parametrize("shift", ["position", "missing slice", "nothing"])
def test_a_series_that_the_volume_does_not_lie_on_is_refused(shift, made, head, tmp_path, capsys):
    axes, spacing = GRIDS["axial"]
    folder = tmp_path / "source"
    folder.mkdir()
    if shift == "position":
        write_series(folder, head, axes, (spacing[0], spacing[1], 3.1))
    elif shift == "missing slice":
        write_series(folder, head, axes, spacing)
        next(folder.glob("021-*")).unlink()
    assert main(["dicom", str(made[1]), str(folder), "-o", str(tmp_path / "derived")]) == 3
    message = capsys.readouterr().err
    expected = {
        "position": "no series lies on the volume's grid",
        "missing slice": "31 files in series that are no even stack",
        "nothing": "found no files",
    }
    assert expected[shift] in message
    assert str(folder) in message
    assert not (tmp_path / "derived").exists()


def test_damaged_files_end_with_one_error_or_a_whole_series(made, tmp_path):
    series, volume = made
    files = sorted(series.iterdir())
    refusals = []
    for seed in range(40):
        random = np.random.default_rng(seed)
        folder = shutil.copytree(series, tmp_path / "source")
        damaged = folder / files[random.integers(len(files))].name
        content = bytearray(damaged.read_bytes())
        content[random.integers(128, 1200)] = random.integers(256)  # the header
        damaged.write_bytes(bytes(content))
        try:
            write_dicom(volume, folder, tmp_path / "derived")
        except DatasetError as error:
            refusals.append(str(error))
            assert str(folder) in refusals[-1]
            assert not (tmp_path / "derived").exists()
        else:
            images = slices(tmp_path / "derived")
            assert len(images) == 32
            assert {image.PatientID for image in images} == {"P-17"}
            shutil.rmtree(tmp_path / "derived")
        shutil.rmtree(folder)
    assert 5 < len(refusals) < 35  # both outcomes were tried


def test_a_volume_that_is_not_synthetic_or_was_changed_is_refused(made, tmp_path, capsys):
    series, volume = made
    for path in volume.parent.glob("*synthetic*"):
        shutil.copy(path, tmp_path)
    own = tmp_path / volume.name
    found = read_volume(own)
    write_volume(own, found.array + 1, found.affine)
    assert main(["dicom", str(own), str(series), "-o", str(tmp_path / "derived")]) == 3
    assert "is not the volume that its sidecar describes" in capsys.readouterr().err
    Path(str(own).replace(".nii.gz", ".json")).unlink()
    assert main(["dicom", str(own), str(series), "-o", str(tmp_path / "derived")]) == 3
    assert "no sidecar says how the volume was made" in capsys.readouterr().err


def test_a_series_that_is_there_already_stays(made, tmp_path, capsys):
    series, volume = made
    (tmp_path / "derived").mkdir()
    (tmp_path / "derived" / "precious").write_text("kept")
    assert main(["dicom", str(volume), str(series), "-o", str(tmp_path / "derived")]) == 3
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "derived" / "precious").read_text() == "kept"


def test_a_full_disk_leaves_no_half_series(made, small_disk, capsys):
    series, volume = made
    filler = small_disk / "filler"
    filler.write_bytes(bytes(4 * 1024 * 1024 - 40 * 1024))
    assert main(["dicom", str(volume), str(series), "-o", str(small_disk / "derived")]) == 7
    assert "the disk is full" in capsys.readouterr().err
    assert [path.name for path in small_disk.iterdir()] == ["filler"]
