// Class ids of a picture, as transformers.js finds them: in Node `node transformers_js.mjs PACKAGE MODELS MODEL PICTURE
// DTYPE`, in a browser `window.segment(model, picture, dtype)`. Both give {width, height, names, labels}.

export async function segment(library, model, picture, dtype) {
    const { AutoModelForSemanticSegmentation, AutoProcessor, RawImage, pipeline } = library;
    const image = await RawImage.read(picture);
    const network = await AutoModelForSemanticSegmentation.from_pretrained(model, { dtype });
    const processor = await AutoProcessor.from_pretrained(model);
    const outputs = await network(await processor(image));
    const [{ segmentation }] = processor.image_processor.post_process_semantic_segmentation(outputs, [
        [image.height, image.width],
    ]);
    // The pipeline must do the same: without a dtype it takes the one of config.json.
    const masks = await (await pipeline("image-segmentation", model, { dtype }))(image);
    return {
        width: image.width,
        height: image.height,
        labels: Array.from(segmentation.data),
        names: masks.map((mask) => mask.label),
    };
}

export function localOnly(env, models) {
    env.allowRemoteModels = false;
    env.allowLocalModels = true;
    env.useBrowserCache = false;
    env.localModelPath = models;
}

if (typeof process !== "undefined" && process.argv.length > 3) {
    const [library, models, model, picture, dtype] = process.argv.slice(2);
    const loaded = await import(library);
    localOnly(loaded.env, models);
    console.log(JSON.stringify(await segment(loaded, model, picture, dtype || undefined)));
}
