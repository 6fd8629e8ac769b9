"""Names of files that are no scans (``ingest.exclude``), and ids that name nobody (``ingest.unknown_patients``)."""

#: What lies beside scans in folders as programs write them: sidecars and tables of BIDS, viewers and notes on patient
#: CDs, what macOS and Windows leave, logos. Series of BIDS that have a time axis are no scans here, either.
NOT_SCANS = (
    "*.json", "*.tsv", "*.csv", "*.bval", "*.bvec", "*.txt", "*.md", "*.rst", "*.log", "*.xml", "*.html", "*.htm",
    "*.css", "*.js", "*.pdf", "*.rtf", "*.doc", "*.docx", "*.xls", "*.xlsx", "*.py", "*.sh", "*.bat", "*.exe", "*.dll",
    "*.so", "*.jar", "*.inf", "*.ini", "*.ico", "*.lnk", "*.url", "*.db", "*.app", "readme*", "changes", "license*",
    "citation*", "__macosx", "$recycle.bin", "system volume information", "*logo*", "*_bold.nii*", "*_sbref.nii*",
    "*_dwi.nii*", "*_epi.nii*", "*_asl.nii*",
)  # fmt: skip


#: What anonymisers and forms write where no patient is named.
PLACEHOLDERS = (
    "anonymous", "anonymized", "anonymised", "anon", "anonym", "unknown", "unknown patient", "no id", "no name", "none",
    "noname", "null", "nan", "na", "n/a", "not available", "undefined", "unspecified", "patient", "test", "xxx", "xxxx",
    "removed", "deleted", "redacted", "deidentified", "de-identified", "0", "00", "000", "0000", "00000", "000000",
    "0000000", "00000000", "-", "--", ".", "?", "*", "x",
)  # fmt: skip
