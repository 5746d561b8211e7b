"""The U-Net: training and whole-volume segmentation."""
