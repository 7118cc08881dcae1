// nextflow run configs/line.nf --slides $PWD/slides.csv --target tumour --study $PWD/study [--parts 4]
// Never executed here. Outputs go to the study's own folders, where a run that stopped is taken up.
params.parts = 4

process tile {
    cpus 4
    input: val part
    output: val part
    script: "tile-slides ${params.slides} --out ${params.study}/patches --part ${part}/${params.parts} --workers ${task.cpus}"
}

process extract {
    accelerator 1
    input: tuple val(part), val(tiled)
    output: val part
    script: "extract-features ${params.study}/patches --out ${params.study}/features --part ${part}/${params.parts}"
}

process train {
    input: val extracted
    output: val true
    script: "train-mil ${params.study}/features --labels ${params.slides} --target ${params.target} --out ${params.study}/run"
}

process heatmaps {
    input: val trained
    script: "export-heatmaps ${params.study}/run ${params.study}/features --slides ${params.slides} --out ${params.study}/heatmaps"
}

workflow {
    parts = channel.of(1..params.parts)
    tiled = tile(parts).collect()
    extracted = extract(parts.combine(tiled.map { all -> [all] })).collect()
    heatmaps(train(extracted))
}
